package Serai::Worker;

# The worker's side of docs/reference/worker-protocol.md: one connection, one
# request at a time; and the life of a site's only worker.
#
# A site is a hash: what the block says (Serai::Site) and
#   number, launch   of the hello
#   listener, status, log handles; log is a copy of standard error
#   respond          sub ($env, $body): answers one request by Serai::Reply;
#                    $body is undef, a reference to bytes, or a handle at 0
#   static           names and values added to each request's environment
#   parting          set by the site's code: the worker leaves with its next reply

use v5.36;
use Errno qw(EINTR EAGAIN ECONNABORTED);
use Fcntl qw(O_RDWR O_CREAT O_EXCL O_DIRECTORY);
use Socket qw(MSG_DONTWAIT SOL_SOCKET SO_RCVTIMEO);
use POSIX ();
use Serai::Override;
use Serai::Reply;
use Serai::Size;
use Serai::Stack;

use constant {
    VERSION     => 1,
    BODY_MEMORY => 1 << 20,    # a request's body above that many bytes is kept in a file
    FRAME_MAX   => 1 << 20,
    POLLRDHUP   => 0x2000,
    OOM_SCORE   => 100,        # of 1000 of the cap that a worker counts for more than its loaded process
    O_TMPFILE   => 0x400000 | O_DIRECTORY,
};

# run serves as the site's only worker until it shall leave.
sub run ($site) {
    begin($site);
    while (my $connection = next_connection($site, !$site->{min})) {
        # It wakes to look while it waits for a request.
        setsockopt $connection, SOL_SOCKET, SO_RCVTIMEO, pack 'l!l!', 1, 0 if $Serai::Watch::current;
        my $how = serve($connection, $site);
        last if $how ne 'eof' && !($how eq 'quit' && stays($site));
    }
    leave();
}

# begin makes this process a worker. Where memory is short the kernel ends it
# rather than the loaded process, which costs all workers.
sub begin ($site) {
    if (open my $score, '>', '/proc/self/oom_score_adj') { syswrite $score, OOM_SCORE }
    Serai::Stack::answer(@$site{qw(log root)}, $site->{slow} / 1000);
    $site->{weight} = Serai::Size->new($site->{size}, $site->{log}) if $site->{size};
}

# next_connection accepts; it returns nothing when the process shall leave:
# drained, idle for too long (where may_leave), or the listener dead.
sub next_connection ($site, $may_leave, @end) {
    while (!$site->{draining}) {
        my $ready = wait_readable($may_leave && !$site->{kept} ? $site->{idle} / 1000 : undef,
            $site->{listener}, $site->{status} // (), @end) or return;
        read_status($site) if $site->{status} && $ready->($site->{status});
        $ready->($_) and return for @end;
        next if $site->{draining} || !$ready->($site->{listener});
        my $connection = take($site) // return;
        return $connection if $connection;
    }
    return;
}

# take accepts one connection: 0 where it was taken by another process, undef
# where the listener serves no more.
sub take ($site) {
    my $connection;
    return $connection if accept $connection, $site->{listener};
    return 0 if $! == EAGAIN && !shut_down($site->{listener}) || $! == EINTR || $! == ECONNABORTED;
    warn "Serai: accept: " . ($! == EAGAIN ? 'the listener was shut down' : $!) . ": the process leaves\n";
    return undef;
}

# shut_down says whether code of the site called shutdown on the listener:
# accept says EAGAIN for ever then, and poll that it is readable.
sub shut_down ($listener) {
    local $!;
    require IO::Poll;
    my $poll = IO::Poll->new;
    $poll->mask($listener => IO::Poll::POLLIN() | POLLRDHUP);
    $poll->poll(0);
    return $poll->events($listener) & (POLLRDHUP | IO::Poll::POLLHUP());
}

# wait_readable waits for one of the handles and returns a test for each, or
# nothing when the seconds have passed.
sub wait_readable ($seconds, @handles) {
    my $want = '';
    vec($want, fileno $_, 1) = 1 for @handles;
    my $watch = $Serai::Watch::current;
    while (1) {
        my $slice = $watch && (!defined $seconds || $seconds > 1) ? 1 : $seconds;
        my $n = select my $got = $want, undef, undef, $slice;
        $watch->look if $watch && time != $watch->{looked};
        if ($n == 0) {
            next if $watch && (!defined $seconds || ($seconds -= $slice) > 0);
            return;
        }
        return sub ($handle) { vec $got, fileno $handle, 1 } if $n > 0;
        die "select: $!\n" if $! != EINTR;
    }
}

# stays says whether a job or daemon keeps the site awake, as far as
# serai-priv has told.
sub stays ($site) {
    while ($site->{status} && read_status($site)) { }
    return $site->{kept} && !$site->{draining};
}

# read_status takes a word of serai-priv off the status socket, and returns
# whether there was one. Its end of file is no reason to leave, but for a site
# that follows.
sub read_status ($site) {
    my $got = recv $site->{status}, my $word, 4096, MSG_DONTWAIT;
    return 0 if !defined $got && ($! == EAGAIN || $! == EINTR);
    if (!defined $got || !length $word) {
        delete $site->{status};
        $site->{draining} = 1 if $site->{follows};
    }
    elsif ($word eq 'drain') { $site->{draining} = 1 }
    elsif ($word eq 'awake' || $word eq 'rest') { $site->{kept} = $word eq 'awake' }
    return 1;
}

# serve says hello and answers requests until the connection ends. It returns
# 'quit' after Q, 'leave' after the last of the worker's requests, 'eof' where
# the proxy has gone.
sub serve ($connection, $site) {
    my $pid = $site->{pid} = $$;
    # Not localised: exit() in the site's code undoes that before END runs.
    $Serai::Override::connection = $Serai::Reply::socket = $connection;
    $Serai::Reply::gone = 0;
    $Serai::Reply::state = 'done';
    @Serai::Override::at_exit = sub { exited($pid) };
    my ($respond, $static) = ($site->{respond}, $site->{static} // []);
    my $left = $site->{left} //= $site->{requests} || -1;
    my ($weight, $slow) = @$site{qw(weight slow)};
    my $watch = $Serai::Watch::current;
    Serai::Reply::put(pack 'NaNNQ>', 16, 'H', VERSION, $site->{number}, $site->{launch});

    my $buffer = '';
    while (1) {
        my $n = sysread $connection, $buffer, 65536, length $buffer;
        if (!$n) {
            return 'eof' if defined $n || $! != EINTR && $! != EAGAIN;
            $watch->look if $watch && time != $watch->{looked};
            next;
        }
        while (length $buffer >= 5) {
            my ($length, $type) = unpack 'Na', $buffer;
            my $end = 5 + $length;
            last if length $buffer < $end && $length <= FRAME_MAX;
            return 'quit' if $type eq 'Q';
            out_of_turn($type, $length) if $type ne 'R' && $type ne 'P' || $length > FRAME_MAX;
            my %env;
            if (length $buffer == $end) {
                %env = (unpack('x5(n/a*)*', $buffer), @$static);
                $buffer = '';
            }
            else {
                %env = (unpack('(n/a*)*', substr $buffer, 5, $length), @$static);
                substr $buffer, 0, $end, '';
            }
            my $body;
            if ($type eq 'P') { $body = body($connection, \$buffer) // return 'eof' }

            $Serai::Reply::state   = '';
            $Serai::Reply::flags   = $left == 1 ? Serai::Reply::LEAVES : 0;
            $Serai::Reply::weight  = $weight && $weight->due(\%env);
            $Serai::Reply::no_body = $env{REQUEST_METHOD} eq 'HEAD';
            $Serai::Stack::request = \%env;
            $Serai::Stack::began   = Time::HiRes::time() if $slow;
            $respond->(\%env, $body);
            undef $Serai::Stack::request;
            POSIX::_exit(0) if $$ != $pid;    # a child that came back instead of ending
            $site->{left} = $left = 1 if $site->{parting};
            return 'eof' if $Serai::Reply::gone;
            return 'leave' if $Serai::Reply::flags;    # the reply's last frame has said so
            $site->{left} = --$left if $left > 1;
            $watch->look if $watch && time != $watch->{looked};
        }
    }
}

# forget leaves no trace of a connection.
sub forget () {
    undef $Serai::Override::connection;
    undef $Serai::Reply::socket;
    $Serai::Reply::state = 'done';
    @Serai::Override::at_exit = ();
}

# exited tells the proxy that the site's code called exit inside a request.
sub exited ($pid) {
    return if $$ != $pid || $Serai::Reply::state eq 'done';
    print STDERR "Serai: the code called exit in the middle of a request: the worker ends\n";
    $Serai::Reply::flags = Serai::Reply::LEAVES_FOR_CODE;
    Serai::Reply::abort('the code called exit');
}

# body reads the frames of a request's body: a reference to its bytes, or, above
# BODY_MEMORY, a handle; undef where the connection ended.
sub body ($connection, $buffer) {
    my ($bytes, $file) = ('');
    while (1) {
        while (length $$buffer >= 5) {
            my ($length, $type) = unpack 'Na', $$buffer;
            out_of_turn($type, $length) if $length > 65536 || $type ne 'B' && $type ne 'E';
            last if length $$buffer < 5 + $length;
            if ($type eq 'E') {
                substr $$buffer, 0, 5 + $length, '';
                return \$bytes if !$file;
                keep($file, $bytes);
                sysseek $file, 0, 0 or die "keep a request's body: $!\n";
                return $file;
            }
            $bytes .= substr $$buffer, 5, $length;
            substr $$buffer, 0, 5 + $length, '';
            if (length $bytes > BODY_MEMORY) {
                $file //= temporary();
                keep($file, $bytes);
                $bytes = '';
            }
        }
        my $n = sysread $connection, $$buffer, 65536, length $$buffer;
        next if $n || !defined $n && ($! == EINTR || $! == EAGAIN);
        return undef;
    }
}

# keep writes a part of a body in one piece: print would make pieces of 8 KiB.
sub keep ($file, $bytes) {
    while (length $bytes) {
        my $n = syswrite $file, $bytes;
        if (defined $n) { substr $bytes, 0, $n, '' }
        elsif ($! != EINTR) { die "keep a request's body: $!\n" }
    }
}

# temporary opens a file without a name, in the home rather than in /tmp,
# which is memory.
sub temporary () {
    for my $dir ($ENV{HOME} // (), '/tmp') {
        my $file;
        return $file if sysopen $file, $dir, O_RDWR | O_TMPFILE, 0600;
        my $name = sprintf '%s/.serai-%d-%08x', $dir, $$, rand 2**32;
        next if !sysopen $file, $name, O_RDWR | O_CREAT | O_EXCL, 0600;
        unlink $name;
        return $file;
    }
    die "make a temporary file: $!\n";
}

sub out_of_turn ($type, $length) {
    die sprintf "the proxy sent a frame out of turn: %s of %d bytes\n", Serai::Reply::shown($type), $length;
}

# leave ends the process as exit would, but for the destruction of every
# object: the END blocks of the site's code, then an end without clean-up, which
# would touch, and so copy, pages that are shared.
sub leave ($status = 0) {
    $Serai::Override::running = 0;
    @Serai::Override::at_exit = ();
    require B;
    my $ends = B::end_av();
    if ($ends->isa('B::AV')) {
        for my $end ($ends->ARRAY) {
            eval { $end->object_2svref->(); 1 } or warn $@;
        }
    }
    flush_all();
    POSIX::_exit($status);
}

# flush_all writes out what the code has printed to any handle. Perl does that
# before an exec, one that fails too.
sub flush_all () {
    no warnings 'exec';
    return exec { '' } '';
}

1;
