"""What the architecture suite says: Tab. 2, what each row costs, and whether parts collapsed."""
