"""Tasks that code makes from a seed: our own words and sentences, as many items as asked for, no files to fetch."""
