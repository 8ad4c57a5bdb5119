"""Before the data: power, frozen analysis plans, looks, fractions of a grid."""
