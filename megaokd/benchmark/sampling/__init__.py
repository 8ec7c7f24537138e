"""An update on the student's own text beside an update of OKD: time, and what a cost model says of it."""
