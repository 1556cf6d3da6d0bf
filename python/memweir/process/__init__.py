"""The process around: its memory, its heap, and what gives both back."""
