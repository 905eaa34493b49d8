package Serai::Size;

# How large a worker is, and which requests made it so (workers.size).
#
# The limit is for private memory as smaps_rollup counts it: pages that this
# process has alone. That takes the kernel up to a millisecond. So statm is
# read first: the anonymous pages of a process, those that it shares with the
# process it was forked from among them, are never fewer than its private ones.
#
# Growth is put down to a request only where the one before it was looked at
# too. A worker that grows is looked at after each request for a while.

use v5.36;
use POSIX ();

use constant {
    EVERY  => 16,          # requests from one look to the next at the most; a second at the most too
    CLOSE  => 32,          # requests that are looked at one by one
    GROWN  => 64 << 10,    # bytes: once a worker has grown by so much
    AGAIN  => 2,           # seconds: pages that were shared become private without a word in statm
    PATHS  => 50,          # requests that growth is put down to by name
    REPORT => 8,           # of them in the log
};

my $PAGE = POSIX::sysconf(POSIX::_SC_PAGESIZE());

# new is for the process it is called in. limit is in bytes; log a handle.
sub new ($class, $limit, $log) {
    my $self = bless {
        limit => $limit, log => $log, since => 0, requests => 0, second => 0, every => 1, close => CLOSE,
        unnamed => 0, grew => {}, other => [0, 0], suspect => $limit, counted => 0,
    }, $class;
    open $self->{statm}, '<', '/proc/self/statm' or return undef;
    $self->{anonymous} = $self->anonymous;
    return $self;
}

# due is called before each request; it returns the object where there shall be
# a look before the last frame of the reply.
sub due ($self, $env) {
    my $now = time;
    return undef if ++$self->{since} < $self->{every} && $now == $self->{second};
    $self->{second} = $now;
    $self->{request} = substr "$env->{REQUEST_METHOD} $env->{PATH_INFO}", 0, 100;
    return $self;
}

# look says whether the worker is too large, and has told the log then.
sub look ($self) {
    my $anonymous = $self->anonymous;
    my $first = !$self->{requests};
    my $n = $self->{since};
    $self->{since} = 0;
    $self->{requests} += $n;
    my $grown = $anonymous - $self->{anonymous};
    $self->{anonymous} = $anonymous;
    if ($grown > 0) {
        if ($n == 1) { $self->put_down($first ? "the first, $self->{request}" : $self->{request}, $grown) }
        $self->{unnamed} += $grown;
        if ($self->{unnamed} >= GROWN) { ($self->{close}, $self->{unnamed}) = (CLOSE, 0) }
    }
    $self->{every} = $self->{close} > 0 ? 1 : EVERY;
    $self->{close}--;

    return 0 if $anonymous < $self->{suspect} && ($anonymous < $self->{limit} || $self->{second} < $self->{counted} + AGAIN);
    my $private = private();
    $self->{counted} = $self->{second};
    if ($private <= $self->{limit}) {
        $self->{suspect} = $anonymous + ($self->{limit} - $private) / 2;
        return 0;
    }
    $self->report($private);
    return 1;
}

# anonymous is the bytes that no file is behind, resident now.
sub anonymous ($self) {
    sysseek $self->{statm}, 0, 0;
    sysread $self->{statm}, my $text, 200;
    my (undef, $resident, $shared) = split / /, $text // '';
    return (($resident // 0) - ($shared // 0)) * $PAGE;
}

# private is the bytes that this process has alone, in memory or swapped out.
sub private () {
    open my $rollup, '<', '/proc/self/smaps_rollup' or return 0;
    my $kib = 0;
    while (<$rollup>) { $kib += $1 if /^(?:Private_\w+|SwapPss):\s*([0-9]+)/ }
    return $kib << 10;
}

# put_down notes growth for a request. There is room for so many names: the
# one that grew least makes room for one that grew more.
sub put_down ($self, $name, $bytes) {
    my $grew = $self->{grew};
    if (!$grew->{$name} && keys %$grew >= PATHS) {
        my ($least) = sort { $grew->{$a}[0] <=> $grew->{$b}[0] } keys %$grew;
        if ($grew->{$least}[0] >= $bytes) { $name = undef }
        else { add($self->{other}, @{ delete $grew->{$least} }) }
    }
    add(defined $name ? $grew->{$name} //= [0, 0] : $self->{other}, $bytes, 1);
}

sub add ($entry, $bytes, $times) { $entry->[0] += $bytes; $entry->[1] += $times }

# report tells the log in one piece, so that lines of others do not get between.
sub report ($self, $private) {
    my %grew = (%{ $self->{grew} });
    my @names = sort { $grew{$b}[0] <=> $grew{$a}[0] || $a cmp $b } keys %grew;
    my $other = $self->{other};
    add($other, @{ $grew{$_} }) for splice @names, REPORT;
    my $text = sprintf "Serai: worker %d leaves after %s: %s of private memory, workers.size is %s\n",
        $$, counted($self->{requests}), mebibytes($private), mebibytes($self->{limit});
    $text .= "    grown by, where requests were looked at one by one:\n" if @names;
    $text .= sprintf "    %10s in %s: %s\n", mebibytes($grew{$_}[0]), counted($grew{$_}[1]), printable($_) for @names;
    $text .= sprintf "    %10s in %s: others\n", mebibytes($other->[0]), counted($other->[1]) if $other->[1];
    syswrite $self->{log}, $text;
}

sub counted ($n) { return $n == 1 ? '1 request' : "$n requests" }
sub mebibytes ($bytes) { return sprintf '%.1f MiB', $bytes / (1 << 20) }
sub printable ($text) { return $text =~ s/([^ -~])/sprintf '\\x%02x', ord $1/ger }

1;
