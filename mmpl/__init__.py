"""mmpl: long films from text by Macro-from-Micro Planning. Importing it does nothing."""

__version__ = "0.1.0"
