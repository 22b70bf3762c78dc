"""What is forgotten and what stays: TOFU, MUSE, records in files, and sources in a word."""
