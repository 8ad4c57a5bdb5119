"""MoRA, its maps and its restarts."""
