"""Measuring a bundle: labelled images in, figures with their intervals and a report out."""
