"""What is kept for ever: copies of the databases, and closed weeks in files of their own."""
