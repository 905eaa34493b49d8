package Serai::Launch;

# How a child of the zygote becomes a tenant's process, for good. What is the
# same for all tenants it does before it has an order: a wake waits for the rest.

use v5.36;
use POSIX ();
use Socket qw(MSG_NOSIGNAL);
use Serai::Override;
use Serai::Sys;

use constant { LISTENER => 3, STATUS => 4, BLOCK => 5 };
use constant { FILES_SOFT => 1024, FILES_HARD => 4096 };

# The messages: what follows are descriptors.
use constant { SPAWN => pack('(N/a*)*', op => 'spawn'), RUN => pack('(N/a*)*', op => 'run') };

# spare is the whole life of the child that a zygote has forked ahead of time.
# It gives up all that it can without knowing for whom, waits for a message on
# the control socket, says on $taken that it has one, and becomes a site, or a
# task where the message has no listener. $program is the seccomp program,
# $reserved the zygote's uid and gid.
sub spare ($control, $taken, $program, $reserved) {
    $0 .= ': the next site';
    $SIG{CHLD} = 'DEFAULT';    # a site that ends at once is for serai-priv to reap, not for the kernel
    my $broken = eval { prepare($program); 1 } ? undef : $@;
    # Descriptors alone: Perl counts the handles of each number, and would not
    # close those that the site opens under it later.
    my ($gone, $going) = POSIX::pipe() or $broken //= "pipe: $!\n";
    my ($message, @fds) = Serai::Sys::receive($control) or POSIX::_exit(0);
    die "a message that is neither spawn nor run\n" if $message ne SPAWN && $message ne RUN;
    unshift @fds, undef if $message eq RUN;
    die "a message with " . @fds . " descriptors\n" if @fds < 4;
    POSIX::write($taken, 't', 1);
    # The order lies in its file until the tenant's own process reads it.
    my ($listener, $log, $status, $file, @cgroups) = @fds;
    my $order;
    eval {
        die $broken if defined $broken;
        for my $procs (@cgroups) {
            defined POSIX::write($procs, "0\n", 2) or die "join a cgroup: $!\n";
        }
        my $pid = CORE::fork // die "fork: $!: the plan's number of processes may be used up\n";
        if ($pid) {
            # Taking this process down takes as long as forking it: not before
            # the child has the processor. It closes the pipe in place().
            POSIX::close($going);
            POSIX::read($gone, my $nothing, 1);
            POSIX::_exit(0);
        }
        srand;
        $order = read_order($file);
        $0 = "serai $order->{label}";
        $status = place($listener, $log, $status);
        # Where the kernel cannot, the plan's condition says so.
        Serai::Sys::merge() if $order->{merge};
        drop($order->{uid} + 0, $order->{gid} + 0);
        prove($order->{uid} + 0, $order->{gid} + 0, $reserved);
        Serai::Sys::set_dumpable(1);
        1;
    } or give_up($status, $@);
    defined $listener ? serve_or_exec($order) : task($order);
}

# prepare does what is the same for all tenants.
sub prepare ($program) {
    private_mounts();
    umask 022;
    Serai::Sys::set_limit(Serai::Sys::RLIMIT_CORE, 0, 0);
    Serai::Sys::set_limit(Serai::Sys::RLIMIT_NOFILE, FILES_SOFT, FILES_HARD);
    Serai::Sys::drop_bounding();
    Serai::Sys::clear_ambient();
    Serai::Sys::no_new_privs();
    Serai::Sys::scope();
    Serai::Sys::install_filter($program);
}

# read_order reads what is to be started.
sub read_order ($file) {
    my $packed = '';
    while ((POSIX::read($file, my $part, 4096) // die "read the order: $!\n") > 0) { $packed .= $part }
    my %order = unpack '(N/a*)*', $packed;
    for my $name (qw(uid gid account home site launch label root exec block)) {
        die "the order has no $name\n" if !defined $order{$name};
    }
    return \%order;
}

# give_up tells why the site does not start, and ends.
sub give_up ($status, $why) {
    $why = "$why";
    $why =~ s/\s*\n\s*/ /g;
    $why =~ s/\s+\z//;
    syswrite STDERR, "Serai: the site does not start: $why\n";
    report($status, substr "failed $why", 0, 4096);
    POSIX::_exit(1);
}

# report sends a line on the status socket, a descriptor.
sub report ($status, $line) {
    open my $socket, '+<&=', POSIX::dup($status) or return;
    send $socket, $line, MSG_NOSIGNAL;
    close $socket;
}

# place puts the descriptors where they belong, closes all others, and returns
# where the status socket is.
sub place ($listener, $log, $status) {
    POSIX::setsid();
    open STDIN, '<', '/dev/null' or die "open /dev/null: $!\n";
    for (['standard output', $log, 1], ['standard error', $log, 2], ['listener', $listener, LISTENER], ['status', $status, STATUS]) {
        my ($what, $from, $to) = @$_;
        next if !defined $from;
        POSIX::dup2($from, $to) // die "place the $what: $!\n";
    }
    POSIX::close(LISTENER) if !defined $listener;
    Serai::Sys::close_from(STATUS + 1);
    return STATUS;
}

# private_mounts gives the process an own /tmp and /dev/shm, and own SysV and
# POSIX queues.
sub private_mounts () {
    Serai::Sys::unshare(Serai::Sys::CLONE_NEWNS | Serai::Sys::CLONE_NEWIPC);
    Serai::Sys::mount('none', '/', '', Serai::Sys::MS_REC | Serai::Sys::MS_PRIVATE);
    for my $dir ('/tmp', '/dev/shm') {
        Serai::Sys::mount('tmpfs', $dir, 'tmpfs', Serai::Sys::MS_NOSUID | Serai::Sys::MS_NODEV, 'mode=1777');
    }
}

# drop gives up all but the tenant's uid and gid.
sub drop ($uid, $gid) {
    die "the order names uid $uid and gid $gid\n" if $uid <= 0 || $gid <= 0;
    Serai::Sys::set_groups($gid);
    Serai::Sys::set_gid($gid);
    Serai::Sys::set_uid($uid);
    Serai::Sys::drop_capabilities();
}

# prove tries to go back, and dies where that works or where the kernel shows
# anything but the tenant.
sub prove ($uid, $gid, $reserved) {
    for my $other (0, $reserved) {
        die "could not prove the drop: uid $other can be taken\n" if Serai::Sys::try('setresuid', $other, $other, $other) != -1;
        die "could not prove the drop: gid $other can be taken\n" if Serai::Sys::try('setresgid', $other, $other, $other) != -1;
    }
    my $group = pack 'L', $reserved;
    die "could not prove the drop: groups can be taken\n" if Serai::Sys::try('setgroups', 1, $group) != -1;
    die "could not prove the drop: uid is not $uid alone\n" if grep { $_ != $uid } Serai::Sys::ids('getresuid');
    die "could not prove the drop: gid is not $gid alone\n" if grep { $_ != $gid } Serai::Sys::ids('getresgid');

    my $text = status();
    my $none = '0' x 16;
    for my $must (
        ['Uid', join "\t", ($uid) x 4], ['Gid', join "\t", ($gid) x 4], ['Groups', "$gid "], ['NoNewPrivs', 1], ['Seccomp', 2],
        map { [$_, $none] } qw(CapInh CapPrm CapEff CapBnd CapAmb),
    ) {
        my ($name, $value) = @$must;
        next if index($text, "\n$name:\t$value\n") >= 0;
        die "could not prove the drop: $name is " . ($text =~ /^$name:\s*(.*?)\s*$/m ? $1 : 'not there') . "\n";
    }
}

# status is what the kernel says of this process.
sub status () {
    my $file = POSIX::open('/proc/self/status', POSIX::O_RDONLY()) // die "could not prove the drop: open /proc/self/status: $!\n";
    my $text = '';
    while ((POSIX::read($file, my $part, 4096) // die "could not prove the drop: read /proc/self/status: $!\n") > 0) { $text .= $part }
    POSIX::close($file);
    return $text;
}

# task says up, and becomes the command of a job or daemon.
sub task ($order) {
    report(STATUS, 'up');
    POSIX::close(STATUS);
    eval {
        require Serai::Site;
        my $task = Serai::Site->task($order->{block});
        $task->set_environment($order->{account}, $order->{home});
        $task->enter($order->{home}, $order->{root});
        $task->export_inc;
        my ($program) = my @run = @{ $task->{run} };
        no warnings 'exec';
        exec { $program } @run or die "$program: $!\n";
    };
    syswrite STDERR, "Serai: the command does not start: $@";
    POSIX::_exit(127);    # as a shell
}

# serve_or_exec says up, and goes on to the site's code, in this perl or in a
# fresh one.
sub serve_or_exec ($order) {
    report(STATUS, 'up');
    my %keep = map { $_ => $order->{$_} } qw(account home site launch root block);
    return site(\%keep) if !$order->{exec};
    my $dir = $INC{'Serai/Launch.pm'} =~ s{/Serai/Launch\.pm\z}{}r;
    eval {
        my $memory = Serai::Sys::memfd(pack '(N/a*)*', %keep);
        if ($memory != BLOCK) { POSIX::dup2($memory, BLOCK) // die "dup2: $!\n"; POSIX::close($memory) }
        %ENV = (PATH => '/usr/local/bin:/usr/bin:/bin');
        exec { '/usr/bin/perl' } 'perl', '-I', $dir, "$dir/main.pl" or die "exec perl: $!\n";
    } or give_up(STATUS, $@);
}

# site loads the code and serves it. What it takes: account, home, root,
# block, site (number) and launch; dev where the site is run for its author.
sub site ($what) {
    require Serai::Site;
    require Serai::Watch;
    require Serai::Worker;
    require Serai::Dev if $what->{dev};
    my $site;
    my $pid = $$;
    # Opened here so that no program that the code starts inherits them.
    open my $listener, '+<&=', LISTENER or give_up(STATUS, "the listener: $!");
    open my $status, '+<&=', STATUS or give_up(STATUS, "the status socket: $!");
    open my $log, '>&', \*STDERR or give_up(STATUS, "the log: $!");    # the code may replace its own
    push @Serai::Override::at_exit, sub {
        give_up(fileno $status, "the site's code called exit while it was loaded: take the call out") if $$ == $pid && $pid;
    };
    eval {
        $site = ($what->{dev} ? 'Serai::Dev' : 'Serai::Site')->new($what->{block});
        $0 = "serai $site->{site}";
        @$site{qw(number launch)} = map { $_ + 0 } @$what{qw(site launch)};
        @$site{qw(listener status log)} = ($listener, $status, $log);
        $site->set_environment($what->{account}, $what->{home});
        $site->enter($what->{home}, $what->{root});
        $Serai::Watch::current = Serai::Watch->new($site) if !$what->{dev};
        $site->load;
        1;
    } or give_up(STATUS, $@);
    $pid = 0;
    send $status, 'ready', MSG_NOSIGNAL;
    $Serai::Watch::current->look if $Serai::Watch::current;
    if ($site->alone) { Serai::Worker::run($site) }
    else { require Serai::Loaded; Serai::Loaded::run($site) }
}

1;
