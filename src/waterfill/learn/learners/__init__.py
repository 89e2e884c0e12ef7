"""What is learned: by the LC algorithm, as codes that follow the weights, as all but codes."""
