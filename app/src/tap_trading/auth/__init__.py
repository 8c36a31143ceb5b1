"""Sign-in with a wallet: challenges, signatures, sessions."""
