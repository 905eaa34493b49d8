package Serai::Loaded;

# The loaded process of a site: it accepts, and forks a worker for each
# connection. The workers share its pages.
#
# A worker whose proxy died accepts on the site's listener itself. While one
# waits there, the loaded process does not accept, so that a restarted proxy
# finds the workers that it had. Workers tell by a pipe: `w` and their pid when
# they begin to wait, `s` when they serve again. They leave when the pipe
# "open" has no writer: the loaded process is its only one.

use v5.36;
use POSIX qw(WNOHANG SIGCHLD SIG_BLOCK SIG_UNBLOCK);
use Errno qw(EINTR);
use Serai::Sys;
use Serai::Worker;

use constant LINGER => 1;    # seconds that the loaded process outlives its last worker

# run serves the site until it shall leave.
sub run ($site) {
    pipe my $news, my $tell or die "pipe: $!\n";
    pipe my $open, my $held or die "pipe: $!\n";
    my %workers;    # pid → 1 where it waits for a connection, else 0
    my $had_one;

    # Children are told of by a descriptor. A handler that the site's code set is
    # put back in the workers.
    my $handler = $SIG{CHLD};
    local $SIG{CHLD} = 'DEFAULT';
    my $set = POSIX::SigSet->new(SIGCHLD);
    POSIX::sigprocmask(SIG_BLOCK, $set);
    open my $ended, '<&=', Serai::Sys::signal_fd(SIGCHLD) or die "signalfd: $!\n";

    while (1) {
        reap(\%workers);
        my $waiting = grep { $_ } values %workers;
        last if $site->{draining} && !%workers;
        my $listens = !$waiting && !$site->{draining};
        my $patience = $site->{prepare} ? 0 : %workers || $site->{min} || $site->{kept} ? undef : $had_one ? LINGER : $site->{idle} / 1000;
        my $ready = Serai::Worker::wait_readable($patience, $ended, $news,
            $site->{status} // (), $listens ? $site->{listener} : ());
        if (!$ready) {
            last if !$site->{prepare};
            delete $site->{prepare} if !$site->{prepare}->();    # what workers are to share
            next;
        }
        if ($ready->($ended)) { sysread $ended, my $info, 128 * 16 }
        Serai::Worker::read_status($site) if $site->{status} && $ready->($site->{status});
        if ($site->{draining} && $held) { close $held; undef $held }
        if ($ready->($news)) { read_news($news, \%workers); next }
        next if !$listens || $site->{draining} || !$ready->($site->{listener});

        my $connection = Serai::Worker::take($site) // last;
        next if !$connection;
        $site->{refresh}->() if $site->{refresh};
        my $pid = CORE::fork;
        if (!defined $pid) {
            warn "Serai: fork a worker: $!: the plan's number of processes may be used up\n";
            next;
        }
        if ($pid) { $workers{$pid} = 0; $had_one = 1; next }

        close $_ for grep { defined } $news, $held, $ended, delete $site->{status};
        undef $Serai::Watch::current;
        POSIX::sigprocmask(SIG_UNBLOCK, $set);
        $SIG{CHLD} = $handler // 'DEFAULT';
        srand;
        $0 = "serai $site->{site} worker";
        Serai::Worker::begin($site);
        work($site, $connection, $open, $tell);
    }
    Serai::Worker::leave();
}

# work is the life of one worker.
sub work ($site, $connection, $open, $tell) {
    while (Serai::Worker::serve($connection, $site) eq 'eof') {
        close $connection;
        syswrite $tell, pack 'aN', 'w', $$;
        $connection = Serai::Worker::next_connection($site, 1, $open) or last;
        syswrite $tell, pack 'aN', 's', $$;
    }
    Serai::Worker::leave();
}

sub read_news ($news, $workers) {
    sysread $news, my $records, 5 * 64 or return;
    for my $record (unpack '(a5)*', $records) {
        my ($what, $pid) = unpack 'aN', $record;
        $workers->{$pid} = $what eq 'w' ? 1 : 0 if exists $workers->{$pid};
    }
}

# reap takes up all children that ended, those of a startup file too.
sub reap ($workers) {
    while ((my $pid = waitpid -1, WNOHANG) > 0) { delete $workers->{$pid} }
}

1;
