"""Words that several made tasks take: written for this project, common enough for a small model to know."""

WOMEN = (
    "Anna", "Clara", "Emma", "Grace", "Iris", "Kate", "Maria", "Olga", "Rosa", "Tina", "Wendy", "Julia", "Nina",
    "Sarah",
)  # fmt: skip
MEN = (
    "Ben", "David", "Frank", "Henry", "Jack", "Leo", "Noah", "Paul", "Simon", "Victor", "Adam", "Mark", "Oscar",
    "Peter",
)  # fmt: skip
NAMES = (*WOMEN, *MEN)

ADJECTIVES = (
    "amber", "brave", "calm", "dusty", "eager", "faint", "gentle", "hasty", "icy", "jolly", "keen", "lively",
    "mellow", "noble", "olive", "proud", "quiet", "rapid", "silent", "tidy", "urban", "vivid", "warm", "young",
    "bitter", "crisp", "deep", "early", "fancy", "grand", "humble", "loyal", "minor", "narrow", "plain", "royal",
    "sharp", "tender",
)  # fmt: skip

NOUNS = (
    "anchor", "bridge", "canyon", "desert", "engine", "forest", "garden", "harbor", "island", "jungle", "kettle",
    "ladder", "meadow", "needle", "orchard", "pillow", "quarry", "river", "saddle", "tunnel", "valley", "window",
    "arrow", "barrel", "castle", "dragon", "falcon", "guitar", "hammer", "lantern", "mirror", "planet", "rocket",
    "shadow", "temple", "turtle", "violin", "wagon",
)  # fmt: skip

FIVE_LETTERS = (
    "apple", "beach", "bread", "brick", "chair", "chalk", "cloud", "clown", "coral", "crown", "daisy", "dream",
    "eagle", "earth", "fairy", "field", "flame", "flute", "frost", "fruit", "glass", "glove", "grape", "grass",
    "heart", "honey", "horse", "house", "jewel", "juice", "knife", "lemon", "light", "lunch", "maple", "melon",
    "money", "mouse", "music", "night", "ocean", "olive", "onion", "paint", "paper", "peach", "pearl", "piano",
    "plant", "plate", "queen", "radio", "river", "robin", "salad", "shark", "sheep", "shell", "shirt", "smoke",
    "snake", "spoon", "stone", "storm", "sugar", "table", "tiger", "toast", "tower", "train", "truck", "watch",
    "water", "whale", "wheat", "wheel",
)  # fmt: skip
"""Nouns of five letters, none twice."""
