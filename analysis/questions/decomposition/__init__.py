"""What a prompt loss weight acts through."""
