"""The studies, one file a paper, named by its slug."""
