"""Starts all of Deskmate on one machine. Standard library only: most of this runs before the environment exists."""
