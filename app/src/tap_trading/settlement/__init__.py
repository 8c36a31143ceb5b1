"""From bars to money: rates are fixed, columns settled, and both can be shown again."""
