"""What things cost in time and memory, and what choices do to the answers: what a maintainer measures."""
