"""The pages: catalogue, evidence and a user's own runs as a static site (`paperworks report`)."""
