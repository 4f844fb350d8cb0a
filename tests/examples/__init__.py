"""Short programs that show how goqueue is used; tests/test_examples.py runs them."""
