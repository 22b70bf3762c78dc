"""Language models: any checkpoint, small ones made here, what they answer and write."""
