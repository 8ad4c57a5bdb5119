"""What a judge said of generated answers: win rates, with and without length, and grades."""
