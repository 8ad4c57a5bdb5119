"""Learning against forgetting."""
