"""What a trained model can do that it could not before."""
