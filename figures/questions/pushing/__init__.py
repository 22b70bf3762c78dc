"""Does the push match the need? On the default model, on chains, and on the models of a study."""
