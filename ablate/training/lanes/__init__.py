"""Cells of one base that train side by side in one process, each in a lane of its own."""
