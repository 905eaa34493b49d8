package Guests;

use strict;
use warnings;
use parent 'CGI::Application';
use CGI::Application::Plugin::Session;
use Digest::MD5;
use File::Basename 'dirname';

my $var = dirname(dirname(__FILE__)) . '/var';
mkdir $var;

sub setup {
    my $self = shift;
    $self->start_mode('index');
    $self->mode_param(path_info => 1);
    $self->run_modes([qw(index login upload wait news)]);
    mkdir "$var/sessions";
    $self->session_config(CGI_SESSION_OPTIONS => ['driver:File', $self->query, { Directory => "$var/sessions" }]);
    $self->header_props(-type => 'text/plain');
}

sub index {
    my $self = shift;
    my $name = $self->session->param('name');
    return "Nobody is logged in\n" if !defined $name;
    my $visits = $self->session->param('visits') + 1;
    $self->session->param(visits => $visits);
    return "Hello $name, visit $visits, process $$\n";
}

sub login {
    my $self = shift;
    $self->session_recreate if defined $self->session->param('name');
    $self->session->param(name   => scalar $self->query->param('name'));
    $self->session->param(visits => 0);
    return "Welcome, process $$\n";
}

sub upload {
    my $self = shift;
    my $file = $self->query->upload('file');
    if (!$file) {
        $self->header_add(-status => 400);
        return "no file\n";
    }
    my $sum = Digest::MD5->new->addfile($file)->hexdigest;
    return join(' ', scalar $self->query->param('file'), -s $file, $sum) . "\n";
}

# Answers when there is news, or after a minute. Meanwhile the worker is busy:
# workers.max must be above the number of those who wait.
sub wait {
    my $self = shift;
    my $until = time + 60;
    select undef, undef, undef, 0.1 while !-e "$var/news" && time < $until;
    open my $in, '<', "$var/news" or return "no news\n";
    local $/;
    return join '', $self->session->param('name') // 'You', ", process $$: ", readline $in;
}

sub news {
    my $self = shift;
    open my $out, '>', "$var/news.new" or die "news: $!";
    print {$out} scalar $self->query->param('text'), "\n";
    close $out or die "news: $!";
    rename "$var/news.new", "$var/news" or die "news: $!";
    return "told\n";
}

1;
