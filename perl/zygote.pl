#!/usr/bin/perl
# The zygote: a Perl process with the operator's modules loaded, from which
# sites are forked (docs/reference/zygote-protocol.md). It holds nothing of a
# tenant and nothing secret.

use v5.36;
use Serai::Override;
use POSIX ();
use Socket ();
use Serai::Sys;
use Serai::Launch;

use constant { CONTROL => 3, USER_NS => 4, MOUNT_NS => 5, FILTER => 6 };

exit main();

sub main {
    my ($first) = Serai::Sys::receive(CONTROL) or return 0;
    my %config = (module => []);
    my @fields = unpack '(N/a*)*', $first;
    shift(@fields) eq 'op' && shift(@fields) eq 'config' or die "the first message is not config\n";
    while (my ($name, $value) = splice @fields, 0, 2) {
        ref $config{$name} ? push @{ $config{$name} }, $value : ($config{$name} = $value);
    }
    my $program = leave_root($config{uid} + 0);

    # From here on this is a process of the reserved uid.
    $0 = "serai zygote $config{set}";
    %ENV = (PATH => '/usr/local/bin:/usr/bin:/bin', LANG => 'C.UTF-8');
    my @report = load(@{ $config{module} });
    warm_up();
    answer(op => 'up', @report);

    $SIG{CHLD} = 'IGNORE';    # children are taken up by the kernel
    # The order itself is left in its file for the child: what was read here,
    # the sites of others could find in the memory that they are forked with.
    while (my ($message, @fds) = Serai::Sys::receive(CONTROL)) {
        my %is = unpack '(N/a*)*', $message;
        die "an op that is none: $is{op}\n" if ($is{op} // '') ne 'spawn';
        die "a spawn with " . @fds . " descriptors\n" if @fds < 4;
        my $pid = CORE::fork;
        Serai::Launch::child(\@fds, $program, $config{uid} + 0) if defined $pid && !$pid;
        Serai::Launch::report($fds[2], "failed fork: $!: the zygote cannot make a process") if !defined $pid;
        POSIX::close($_) for @fds;
    }
    POSIX::_exit(0);
}

# leave_root enters the tenants' namespaces and gives up kuid 0. It returns the
# seccomp program.
sub leave_root ($uid) {
    die "the reserved uid is $uid\n" if $uid <= 0;
    my $program = '';
    while (POSIX::read(FILTER, my $part, 65536) > 0) { $program .= $part }
    die "the seccomp program has " . length($program) . " bytes\n" if !length $program || length($program) % 8;
    Serai::Sys::setns(USER_NS, Serai::Sys::CLONE_NEWUSER);
    Serai::Sys::setns(MOUNT_NS, Serai::Sys::CLONE_NEWNS);
    Serai::Sys::set_groups();
    Serai::Sys::set_gid($uid);
    Serai::Sys::set_uid($uid);
    die "root can be taken again\n" if Serai::Sys::try('setresuid', 0, 0, 0) != -1;
    POSIX::close($_) for USER_NS, MOUNT_NS, FILTER;
    umask 022;
    chdir '/';
    return $program;
}

# load loads modules, and says which are missing or broken.
sub load (@modules) {
    my @report;
    for my $module (@modules) {
        my $file = "$module.pm" =~ s{::}{/}gr;
        if ($module !~ /\A\w+(?:::\w+)*\z/) { push @report, broken => "$module: no name of a module"; next }
        next if eval { require $file; 1 };
        my $why = $@;
        if ($why =~ /\ACan't locate \Q$file\E in \@INC/) { push @report, missing => $module; next }
        push @report, broken => "$module: " . ($why =~ /\A(.*)/ ? substr $1, 0, 500 : 'died');
    }
    return @report;
}

# warm_up runs the serving loop over a socket pair: what its first run
# allocates is then shared by all workers.
sub warm_up {
    require Serai::Site;
    require Serai::Worker;
    require Serai::Loaded;
    require Serai::PSGI;
    require Serai::Scripts;
    require $_ for qw(lib.pm Cwd.pm B.pm IO/File.pm PerlIO/scalar.pm);
    my $n = 0;
    my $site = { number => 0, launch => 0, max => 1, requests => 0 };
    Serai::PSGI::serve_by($site, sub ($env) {
        my $in = $env->{'psgi.input'};
        $in->read(my $body, 100);
        return [200, ['Content-Type' => 'text/plain'], ["warm $env->{PATH_INFO}"]] if $n++ < 2;
        return sub ($respond) { $respond->([200, ['Content-Type' => 'text/plain'], ['warm']]) } if $n < 4;
        return sub ($respond) { my $w = $respond->([200, []]); $w->write('warm'); $w->close };
    });
    socketpair my $proxy, my $worker, Socket::AF_UNIX(), Socket::SOCK_STREAM(), 0 or die "socketpair: $!\n";
    my $list = pack '(n/a*)*', REQUEST_METHOD => 'GET', PATH_INFO => '/', QUERY_STRING => '', SERVER_PROTOCOL => 'HTTP/1.1',
        map { ("HTTP_X_$_" => 'x' x 20) } 1 .. 20;
    my $plain = pack 'Naa*', length $list, 'R', $list;
    my $posted = pack('Naa*', length $list, 'P', $list) . pack('NaA*', 4, 'B', 'body') . pack('Na', 0, 'E');
    syswrite $proxy, $plain . $posted . $plain x 4 . pack 'Na', 0, 'Q';
    Serai::Worker::serve($worker, $site);
    Serai::Worker::forget();
    delete $SIG{__DIE__};
}

sub answer (@fields) {
    open my $control, '+<&=', POSIX::dup(CONTROL) or die "the control socket: $!\n";
    send $control, pack('(N/a*)*', @fields), 0 or die "answer: $!\n";
}
