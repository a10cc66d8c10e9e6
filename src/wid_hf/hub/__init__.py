"""What goes to the Hub beside the weights: cards, sizes, the files of a folder that wid_hf wrote."""
