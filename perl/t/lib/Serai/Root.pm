package Serai::Root;

# What serai-priv does for a zygote, for tests: namespaces, cgroups, accounts'
# homes, messages with descriptors. All of it is undone when the object goes.

use v5.36;
use File::Path qw(make_path remove_tree);
use POSIX ();
use Socket;
use Serai::Driver;
use Serai::Sys;

use constant { FIRST => 1900004000, LAST => 1900004099, NAME => 'serai-test-f' };

sub new ($class, @modules) {
    die "these tests make accounts' processes: run them as root\n" if $>;
    my $r = bless { pids => [], home => '/srv/' . NAME . "-$$", owner => $$, cgroups => [] }, $class;
    make_path($r->{home}, { mode => 0755 });
    chmod 0755, $r->{home};
    $r->install;
    $r->make_cgroups;
    $r->make_namespaces;
    $r->start(@modules);
    return $r;
}

# install puts the programs where every account can read them: the checkout may
# be in /tmp, which sites do not see, or in a home of mode 0700.
sub install ($r) {
    $r->{engine} = "$r->{home}/engine";
    mkdir $r->{engine}, 0755 or die "$r->{engine}: $!";
    system('cp', '-r', (map { "$Serai::Driver::DIR/$_" } qw(Serai main.pl zygote.pl)), $r->{engine}) == 0 or die "copy the programs";
    system('chmod', '-R', 'a+rX', $r->{engine}) == 0 or die "make the programs readable";
}

# make_cgroups makes one in each hierarchy that counts.
sub make_cgroups ($r) {
    my @roots = -e '/sys/fs/cgroup/cgroup.procs' ? '/sys/fs/cgroup' : grep { -e "$_/cgroup.procs" } map { "/sys/fs/cgroup/$_" } qw(memory pids unified);
    for my $root (@roots) {
        my $dir = "$root/" . NAME . "-$$";
        mkdir $dir or die "$dir: $!";
        push @{ $r->{cgroups} }, $dir;
    }
}

sub make_namespaces ($r) {
    socketpair my $a, my $b, AF_UNIX, SOCK_STREAM, 0 or die;
    my $pid = CORE::fork // die;
    if (!$pid) {
        close $a;
        Serai::Sys::unshare(Serai::Sys::CLONE_NEWUSER);
        syswrite $b, 'u';
        sysread $b, my $go, 1;
        Serai::Sys::unshare(Serai::Sys::CLONE_NEWNS);
        syswrite $b, 'm';
        sysread $b, $go, 1;
        POSIX::_exit(0);
    }
    push @{ $r->{pids} }, $pid;
    close $b;
    sysread $a, my $x, 1;
    for my $map ('uid_map', 'gid_map') {
        open my $f, '>', "/proc/$pid/$map" or die;
        syswrite $f, join(' ', FIRST, FIRST, LAST - FIRST + 1) . "\n" or die "$map: $!";
    }
    syswrite $a, 'g';
    sysread $a, $x, 1;
    for my $ns ('user', 'mnt') { open $r->{$ns}, '<', "/proc/$pid/ns/$ns" or die "$ns: $!" }
    close $a;
}

# program is a seccomp program that refuses one system call, and allows else.
sub program ($r) {
    my $unshare = (POSIX::uname())[4] eq 'aarch64' ? 97 : 272;
    return join '', map { pack 'SCCL', @$_ } [0x20, 0, 0, 0], [0x15, 0, 1, $unshare], [6, 0, 0, 0x50001], [6, 0, 0, 0x7fff0000];
}

sub start ($r, @modules) {
    socketpair my $mine, my $its, AF_UNIX, SOCK_SEQPACKET, 0 or die;
    open my $filter, '+>', undef or die;
    syswrite $filter, $r->{program} // $r->program;
    sysseek $filter, 0, 0;
    open my $null, '<', '/dev/null' or die;
    open $r->{zlog}, '+>', undef or die;
    my $pid = CORE::fork // die;
    if (!$pid) {
        my @high = map { my $h = POSIX::dup(fileno $_); while ($h < 15) { $h = POSIX::dup(fileno $_) } $h } $null, $r->{zlog}, $r->{zlog}, $its, $r->{user}, $r->{mnt}, $filter;
        POSIX::dup2($high[$_], $_) for 0 .. 6;
        Serai::Sys::close_from(7);
        %ENV = (PATH => '/usr/bin:/bin');
        exec '/usr/bin/perl', '-I', $r->{engine}, "$r->{engine}/zygote.pl" or POSIX::_exit(127);
    }
    push @{ $r->{pids} }, $pid;
    $r->{zygote} = $pid;
    $r->{control} = $mine;
    send $mine, pack('(N/a*)*', op => 'config', uid => LAST, set => 'standard', map { (module => $_) } @modules), 0;
}

# answer reads one message of the zygote's: names and values.
sub answer ($r) {
    Serai::Driver::readable($r->{control}) or die "the zygote says nothing\n" . $r->zlog;
    recv $r->{control}, my $m, 65536, 0;
    return unpack '(N/a*)*', $m;
}

sub zlog ($r) { seek $r->{zlog}, 0, 0; local $/; return readline($r->{zlog}) // '' }

# site makes the home of an account and spawns a site; the result has what a
# Serai::Driver has.
sub site ($r, %o) {
    my $uid = FIRST + $o{n};
    my $home = "$r->{home}/$o{n}";
    make_path("$home/site");
    my $d = bless { home => $home, pid => 0, uid => $uid }, 'Serai::Driver';
    $d->write("site/$_", $o{files}{$_}) for sort keys %{ $o{files} };
    system 'chown', '-R', "$uid:$uid", $home;
    chmod 0700, $home;
    $d->{path} = "$r->{home}/socket$o{n}";
    unlink $d->{path};
    socket $d->{listener}, AF_UNIX, SOCK_STREAM, 0 or die;
    bind $d->{listener}, sockaddr_un($d->{path}) or die;
    listen $d->{listener}, 64;
    $d->{listener}->blocking(0);
    socketpair $d->{status}, my $its, AF_UNIX, SOCK_SEQPACKET, 0 or die;
    setsockopt $d->{status}, SOL_SOCKET, 16, 1 or die;    # SO_PASSCRED
    open my $log, '+>', "$home/.log" or die;
    my @joins = map { open my $f, '>', "$_/cgroup.procs" or die "$_: $!"; $f } @{ $r->{cgroups} };
    open my $order, '+>', undef or die;
    syswrite $order, pack '(N/a*)*', uid => $uid, gid => $o{gid} // $uid, account => "a$o{n}", home => $home, site => 7, launch => 3,
        label => "$uid/7", root => 'site', exec => $o{exec} // 0, merge => $o{merge} // 0, block => pack '(N/a*)*', site => "a$o{n}/shop", @{ $o{block} };
    sysseek $order, 0, 0;
    send_with($r->{control}, pack('(N/a*)*', op => 'spawn'), $o{short} ? ($d->{listener}) : ($d->{listener}, $log, $its, $order, @joins));
    return $d;
}

sub send_with ($socket, $message, @handles) {
    my $control = pack 'Jll l*', 16 + 4 * @handles, 1, 1, map { fileno $_ } @handles;
    $control .= "\0" x (-length($control) & 7);
    my $iov = pack 'JJ', Serai::Sys::address($message), length $message;
    my $head = pack 'JJ JJ JJ J', 0, 0, Serai::Sys::address($iov), 1, Serai::Sys::address($control), length $control, 0;
    my $nr = (POSIX::uname())[4] eq 'aarch64' ? 211 : 46;
    syscall($nr, fileno $socket, $head, 0) >= 0 or die "sendmsg: $!";
}

# children are the processes that the zygote is the parent of.
sub children ($r) {
    open my $f, '<', "/proc/$r->{zygote}/task/$r->{zygote}/children" or return;
    return split ' ', readline($f) // '';
}

# members are the processes in the tenants' cgroup.
sub members ($r) {
    my %all;
    for my $dir (@{ $r->{cgroups} }) { open my $f, '<', "$dir/cgroup.procs" or next; $all{ $_ + 0 } = 1 while <$f> }
    return sort keys %all;
}

sub DESTROY ($r) {
    return if $$ != $r->{owner};
    local ($?, $!, $@);
    close $r->{control} if $r->{control};
    my $until = time + 10;
    while ((my @left = $r->members) && time < $until) { kill KILL => @left; select undef, undef, undef, 0.01 }
    kill KILL => @{ $r->{pids} };
    waitpid $_, 0 for @{ $r->{pids} };
    for my $dir (@{ $r->{cgroups} }) {
        while (!rmdir $dir) { last if time > $until + 10; select undef, undef, undef, 0.01 }
    }
    remove_tree($r->{home});
}

1;
