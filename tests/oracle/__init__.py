"""What programs mean, worked out a second time and independently, for the tests."""
