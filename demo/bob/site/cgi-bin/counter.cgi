#!/usr/bin/perl
# A counter that loses no count, however many visit at once.
use strict;
use warnings;
use Fcntl qw(:flock :seek O_RDWR O_CREAT);

sysopen my $f, 'counter.txt', O_RDWR | O_CREAT, 0600 or die "open counter.txt: $!";
flock $f, LOCK_EX or die "lock counter.txt: $!";
my $n = (<$f> // 0) + 1;
seek $f, 0, SEEK_SET;
truncate $f, 0;
print $f "$n\n";
close $f or die "write counter.txt: $!";

print "Content-Type: text/plain\n\n$n\n";
