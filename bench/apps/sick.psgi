# What goes wrong with customers' code, by the name in $ENV{SICK}.
use strict;
use warnings;

my @kept;
my %way = (
    leak  => sub { push @kept, 'x' x (8 << 20); reply('kept') },
    loop  => sub { 1 while 1 },
    fork  => sub { 1 while defined fork; reply('no more') },
    crash => sub { kill KILL => $$ },
    leave => sub { exit 3 },
    stop  => sub { kill STOP => $$ },
    flood => sub {
        print STDERR 'flood ' x 20_000, "\n";
        sub { my $w = $_[0]->([200, ['Content-Type' => 'text/plain']]); $w->write('x' x 65536) for 1 .. 256; $w->close };
    },
    files => sub {
        open my $f, '>>', '/tmp/file' or die "open: $!";
        print {$f} 'x' x (8 << 20) for 1 .. 20;
        reply('kept');
    },
);

sub reply { return [200, ['Content-Type' => 'text/plain'], ["$_[0]\n"]] }

# One start in three fails.
die "not now\n" if $ENV{SICK} eq 'leave' && time % 3 == 0;
$way{ $ENV{SICK} };
