"""Coverage-guided fuzzing, with atheris: `python -m tests.fuzz TARGET --runs N`."""
