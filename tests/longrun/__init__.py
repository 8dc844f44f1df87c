"""An hour at steady load: what grows, and what it says of the code that it grows."""
