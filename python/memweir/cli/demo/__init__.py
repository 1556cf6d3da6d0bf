"""``memweir demo``: the same rollouts with four ways to hold their pixels, side by side."""
