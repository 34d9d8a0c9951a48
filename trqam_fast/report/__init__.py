"""Pictures and a page about one run or several."""
