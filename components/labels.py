"""How a class is written down."""

UNKNOWN = -100  # the class id of a clip that is not labelled; torch's losses leave it out
