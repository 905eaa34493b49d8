#!/usr/bin/perl
# A package variable lives as long as the process: here on purpose.
our $served;
$served++;
print "Content-Type: text/plain\n\nprocess $$ compiled this once and has run it $served times\n";
