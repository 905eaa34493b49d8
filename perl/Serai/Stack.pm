package Serai::Stack;

# Where a worker is: the answer to the three signals of
# docs/reference/worker-protocol.md. Arguments of calls are never written: they
# may be secret.
#
# Perl keeps a signal until it begins its next statement: so it goes on unharmed,
# but the line may be the one after that where the time went, and a regular
# expression or a library in C is not interrupted. NOW is heard in the middle of
# whatever Perl does. That is safe only where it waits in the kernel, else one in
# some thirty breaks: it comes where nothing is to go on, and to one that waits or
# has not heard LEAVE.

use v5.36;
use POSIX ();

use constant { TELL => 44, LEAVE => 45, NOW => 46 };
use constant { FRAMES => 50, LINE => 300, PIECE => 4096 };    # PIECE is what a pipe takes in one

our $request;    # environment of the request under way
our $began;      # when it came, where the site wants to know of slow ones
our $script;     # [pid, name, whether it hears us] of the process that a script runs in

my $pid = 0;     # of the process that answers
my @settings;    # of answer

# Made before the fork from a zygote (Serai::Warm).
my $NOW = POSIX::SigAction->new('Serai::Stack::leave', POSIX::SigSet->new);

# answer makes this process answer the signals. slow is in seconds: a request
# that came less than half of that ago is not the one meant.
sub answer {
    @settings = @_;    # log, root, slow
    $pid = $$;
    $SIG{ 'NUM' . TELL } = \&tell;
    $SIG{ 'NUM' . LEAVE } = \&leave;
    POSIX::sigaction(NOW, $NOW) or warn "Serai: sigaction: $!\n";
}

sub tell {
    return if $$ != $pid || !$request || !defined $began;
    my ($log, $root, $slow) = @settings;
    my $seconds = Time::HiRes::time() - $began;
    return if $seconds < $slow / 2;
    return kill TELL, $script->[0] if $script && $script->[2];
    report($log, $root, sprintf 'is slow, worker %d has had it for %.1f s', $pid, $seconds);
}

sub leave {
    return if $$ != $pid;
    my $told = $script && end_script();
    report(@settings[0, 1], "took longer than workers.timeout, worker $pid ends") if $request && !$told;
    POSIX::_exit(0);    # to serai-priv a site's only worker has left, not crashed
}

# answer_too is for a script's own process, a child of the worker.
sub answer_too () {
    undef $script;
    answer(@settings);
}

# end_script ends the process of a script, and says whether that has written
# where it was. There is a second for all.
sub end_script () {
    my ($pid, undef, $hears) = @$script;
    for my $signal ($hears ? (runs($pid) ? (LEAVE, NOW) : NOW) : (), 'KILL') {
        kill $signal, $pid;
        for (1 .. 30) {
            return $signal ne 'KILL' if waitpid($pid, POSIX::WNOHANG()) != 0;
            select undef, undef, undef, 0.01;
        }
    }
    return 0;
}

sub runs ($pid) {
    open my $stat, '<', "/proc/$pid/stat" or return 0;
    return (readline($stat) // '') =~ /.*\) R /s;
}

# report writes which request it is, and the callers of the handler.
sub report ($log, $root, $what) {
    local ($!, $@);
    my ($id, $method, $uri) = map { $_ // '-' } @$request{qw(SERAI_REQUEST REQUEST_METHOD REQUEST_URI)};
    my $text = line("Serai: request $id $what: $method $uri");
    my $frames = 0;
    $text .= line("    in process $script->[0], $script->[1]") if $script;
    for (my $i = 2; my ($package, $file, $line) = caller $i; $i++) {    # 1 is an eval of perl itself
        last if $frames && $package =~ /\ASerai::(?:PSGI|Scripts|Program|Worker)\z/;
        if (++$frames > FRAMES) { $text .= "    and what has called it\n"; last }
        $file =~ s/\A\Q$root\E\///;
        $file = '...' . substr $file, -200 if length $file > 200;
        $text .= line("    $file:$line " . name((caller $i + 1)[3]));
    }
    while ($text =~ /(.{1,@{[PIECE - 1]}}\n)/gs) { syswrite $log, $1 }
}

# name is a sub as its author knows it.
sub name ($sub) { return !defined $sub || $sub eq 'main::serai_main' ? 'main program' : $sub }

# line makes one line of the log, whatever the text.
sub line ($text) {
    $text =~ s/([^ -~])/sprintf '\\x{%x}', ord $1/ge;
    return (length $text > LINE ? substr($text, 0, LINE) . ' [cut]' : $text) . "\n";
}

1;
