// The program of the pods that tests run.
module divert.dev/tests/tiny

go 1.26.8
