"""`posthouse demo`: a federation is started, used, hurt and healed, and then every byte it left is looked at."""
