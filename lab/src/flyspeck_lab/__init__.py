"""The laboratory of flyspeck: tables of measurements that anyone can run again, their claims, data sets and comparators."""
