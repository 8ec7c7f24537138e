"""Speed and memory of the loss, measured beside what a user would otherwise pick. `megaokd benchmark loss`."""
