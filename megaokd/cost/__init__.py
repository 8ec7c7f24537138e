"""What a step costs, counted from architectures and layout: nothing is built or run."""
