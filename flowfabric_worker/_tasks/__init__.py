"""What makes a function a task, private: its options and its signature."""
