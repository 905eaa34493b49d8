#!/usr/bin/perl
# A site in a perl of its own (the set "none"): own address layout, own hash
# seed. Its descriptors: 3 the listener, 4 the status socket, 5 a file with a
# list of names and values, (N/a*)*: account, home, site (number), launch, root,
# block. The process has been dropped to its tenant before.

use v5.36;
use Serai::Override;
use POSIX ();
use Serai::Launch;

my $packed = '';
while (POSIX::read(Serai::Launch::BLOCK, my $part, 65536) > 0) { $packed .= $part }
POSIX::close(Serai::Launch::BLOCK);
srand;
Serai::Launch::site({ unpack '(N/a*)*', $packed });
