# What the zygote does so that its pages stay shared.
use v5.36;
use FindBin;
use lib "$FindBin::Bin/..";
use Test::More;
use POSIX ();
use Scalar::Util ();
use Serai::Sys;
use Serai::Warm;

# A heap as modules leave it: free places all over it.
my @things = map { my $n = $_; ({ a => 1 }, [1], "a string of some length, number $n", sub { $n }, "$n" x 40) } 1 .. 20_000;
delete @things[ grep { $_ % 11 == 0 } 0 .. $#things ];

# pages is how many pages lie under 60 new values of a kind.
sub pages ($kind) {
    my @new = map { $kind->($_) } 1 .. 60;
    my %page = map { (Serai::Warm::body($_) >> 12, 1) } @new;
    push @things, @new;
    return scalar keys %page;
}

my %kind = (
    strings => sub { \(my $x = "b$_[0]") },
    arrays => sub { [] },
    hashes => sub { +{} },
    entries => sub { +{ b => 1 } },
    subs => sub { my $x = $_[0]; sub { $x } },
);
for my $name (sort keys %kind) {    # each in a heap of its own
    my $pid = open(my $from, '-|') // die "fork: $!";
    if (!$pid) {
        my $before = pages($kind{$name});
        Serai::Warm::fill();
        print "$before ", pages($kind{$name});
        close STDOUT;
        POSIX::_exit(0);
    }
    my ($before, $after) = split / /, readline $from;
    ok $after <= 4 && $after < $before / 2, "new $name lie side by side" or diag "on $after pages, and on $before before";
}

is scalar(grep { !exists $Serai::Warm::WORD{$_} } qw(REQUEST_METHOD psgi.version block)), 0, 'the usual names are there';

done_testing;
