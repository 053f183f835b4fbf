"""What a study has stored: trials, their attributes, results and cost."""
