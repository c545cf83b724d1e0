"""What a compile did, for people to read: so far, the bytes that a forward keeps for backward."""
