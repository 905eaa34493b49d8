# An application that does what a script asks of it.
use strict;
use warnings;
use File::Basename 'dirname';
use POSIX ();

my $dir   = dirname(__FILE__);
my $reply = sub { my ($body, @headers) = @_; [200, ['Content-Type', 'text/plain', @headers], [$body]] };

my %on = (
    '/pid' => sub { $reply->("$$\n") },

    # holds its worker until somebody writes to the FIFO "gate"
    '/hold' => sub { open my $gate, '<', "$dir/gate" or die "open gate: $!\n"; <$gate>; $reply->("held $$\n") },

    # its length, read to the end
    '/body' => sub {
        my $env = shift;
        my $n   = 0;
        while (my $m = $env->{'psgi.input'}->read(my $buf, 65536)) { $n += $m }
        $reply->("$n bytes, Content-Length " . ($env->{CONTENT_LENGTH} // 'none') . "\n");
    },

    # so many MiB, by a stream
    '/big' => sub {
        my $n = shift->{QUERY_STRING};
        sub { my $w = shift->([200, ['Content-Type', 'application/octet-stream']]); $w->write('x' x 1_048_576) for 1 .. $n; $w->close };
    },

    '/log' => sub { my $env = shift; print STDERR "$env->{QUERY_STRING}\n"; $reply->("logged\n") },
    '/flood' => sub { print STDERR 'x' x 1023, "\n" for 1 .. 12 * 1024; $reply->("flooded\n") },
    '/env' => sub { my $env = shift; $reply->(($ENV{ $env->{QUERY_STRING} } // '(not set)') . "\n") },
    '/seen' => sub { my $env = shift; $reply->(join '', map { "$_=$env->{$_}\n" } grep { !ref $env->{$_} && !/^psgi/ } sort keys %$env) },

    # where its heap lies, and in which order a hash gives its keys
    '/layout' => sub {
        open my $maps, '<', '/proc/self/maps' or die "open maps: $!\n";
        my ($heap) = map { /^(\S+) .*\[heap\]/ ? $1 : () } <$maps>;
        my %h = map { $_ => 1 } 'a' .. 'zz';
        $reply->("$heap " . join('', (keys %h)[0 .. 20]) . "\n");
    },
);

sub {
    my $env = shift;
    my $do  = $on{ $env->{PATH_INFO} } or return [404, ['Content-Type', 'text/plain'], ["the application has no $env->{PATH_INFO}\n"]];
    return $do->($env);
};
